"""Methods that are special cases of one another."""

import numpy as np
import pytest
import tensorflow as tf

import sact_tf


def small(family, model_type):
    if family == "cifar":
        return sact_tf.cifar_resnet("1_4_3", model_type, base_channels=4, tau=0.1)
    return sact_tf.imagenet_resnet(
        "1_4_1_2", model_type, num_classes=7, base_channels=2, tau=0.1
    )


def randomise(variables):
    """Gives variables random values, such that images halt at different units."""
    for number, (name, variable) in enumerate(variables.items()):
        shape = variable.shape
        values = np.random.default_rng(number).normal(size=shape)
        if "moving_variance" in name or "gamma" in name:
            values = 1.0 + 0.2 * np.abs(values)
        elif name.endswith("weights"):
            scale = 4.0 if "halting_proba" in name else 1.0
            values *= scale * np.sqrt(1.0 / np.prod(shape[:-1]))
        elif "halting_proba" in name and name.endswith("biases"):
            values = np.zeros(shape)
        else:
            values *= 0.1
        variable.assign(values)


def act_as_sact(act, sact):
    """Gives a SACT network the weights of an ACT network, and zero local filters.

    The bias of the local convolution is the only one of a SACT head (SACT, eq. 14), and
    so takes the ACT head's.
    """
    for name, variable in sact.items():
        if "/halting_proba/local_conv/" not in name:
            # The local batch normalization does not matter.
            variable.assign(act.get(name, tf.ones(variable.shape)))
        elif name.endswith("/weights"):
            variable.assign(tf.zeros(variable.shape))
        else:
            variable.assign(act[name.replace("local_conv", "global_conv")])


def head_flops(channels, positions, num_units, num_heads):
    """What SACT heads take beyond ACT heads, int64 [batch] (SACT, section 4.1).

    The 3x3 convolution at all positions where the unit runs. The function of the pooled
    features is also counted where it does not, as in the original code.
    """
    total = np.zeros(len(num_units), np.int64)
    for k in range(1, num_heads + 1):
        runs = num_units >= k
        total += np.where(runs, 2 * 9 * channels * positions, 2 * channels)
    return total


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
def test_sact_without_local_filters_is_act(family):
    """SACT, section 2.3, with W~ = 0 is section 2.2 with all positions of an image.

    In inference: batch statistics see what halted images become, frozen or not.
    """
    act, sact = small(family, "act"), small(family, "sact")
    noise = tf.random.stateless_normal([4, 40, 36, 3], [1, 2])
    images = noise * tf.reshape([0.2, 1.0, 2.0, 6.0], [4, 1, 1, 1])
    variables = [sact_tf.slim_variables(model) for model in (act, sact)]
    randomise(variables[0])
    act_as_sact(*variables)
    logits, end_points = act.with_end_points(images, training=False)
    other_logits, other = sact.with_end_points(images, training=False)
    scale = np.abs(logits).max()
    np.testing.assert_allclose(other_logits, logits, atol=1e-5 * scale, rtol=0)
    np.testing.assert_allclose(tf.add_n(sact.losses), tf.add_n(act.losses), rtol=1e-5)
    extra, halted = 0, set()
    for block, count in zip(act.block_scopes, end_points["block_num_units"]):
        positions = other[f"{block}/num_units"].shape[1:]
        for key in ("num_units", "ponder_cost", "halting_distribution"):
            expected = end_points[f"{block}/{key}"].numpy()
            spread = np.broadcast_to(
                expected[:, np.newaxis, np.newaxis],
                [len(expected), *positions, *expected.shape[1:]],
            )
            np.testing.assert_allclose(
                other[f"{block}/{key}"], spread, atol=1e-5, err_msg=f"{block}/{key}"
            )
        output = end_points[block]
        scale = np.abs(output).max()
        np.testing.assert_allclose(other[block], output, atol=1e-5 * scale, rtol=0)
        num_units = end_points[f"{block}/num_units"].numpy()
        halted |= set(num_units)
        block_extra = head_flops(
            output.shape[-1], np.prod(positions), num_units, count - 1
        )
        np.testing.assert_array_equal(
            other[f"{block}/flops"] - end_points[f"{block}/flops"], block_extra
        )
        extra += block_extra
    np.testing.assert_array_equal(other["flops"] - end_points["flops"], extra)
    assert len(halted) > 2  # some halt early, some late
