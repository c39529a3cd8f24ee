"""Room of the Faster R-CNN with SACT features; empty as yet."""
