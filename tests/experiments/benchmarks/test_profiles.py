"""Profiles of graphs by block and operation."""

import tensorflow as tf

from experiments.benchmarks import profiles


def test_profile(capsys):
    @tf.function
    def network(x):
        with tf.name_scope("network/block1/unit_1"):
            x = tf.matmul(x, x)
        return tf.nn.softmax(x)

    x = tf.random.normal([200, 200])
    rows = profiles.profile(lambda: network(x).numpy(), 3)
    assert rows[-1]["operation"] == "between operations"
    (product,) = [row for row in rows if "MatMul" in row["operation"]]
    assert product["block"] == "block1" and product["calls"] == 1
    assert product["seconds"] > 0
    profiles.print_profile(rows, 0.0)
    assert f"| block1 | {product['operation']} | 1 |" in capsys.readouterr().out
