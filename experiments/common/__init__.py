"""What the programs share: flags and their meaning, running, evaluating."""
