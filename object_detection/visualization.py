"""Detections drawn into their images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sact_tf.optional import lazy

matplotlib = lazy("matplotlib")
pil_image = lazy("PIL.Image")
pil_draw = lazy("PIL.ImageDraw")
pil_font = lazy("PIL.ImageFont")


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
    min_score: float = 0.0,
) -> np.ndarray:
    """Draws boxes, each in the colour of its class, with name and score.

    Args:
        image: uint8 [height, width, 3].
        boxes: [n, 4]: ymin, xmin, ymax, xmax in pixels.
        scores: [n].
        classes: int [n], from 1.
        names: Of class 1, class 2, and so on.
        min_score: Boxes of lower scores are not drawn.

    Returns:
        uint8 [height, width, 3].
    """
    canvas = pil_image.fromarray(image)
    draw = pil_draw.Draw(canvas)
    side = min(canvas.size)
    line = max(1, round(side / 250))
    font = pil_font.load_default(size=max(9, round(side / 32)))
    colours = matplotlib.colormaps["tab10"].colors
    # The best last, on top of the others.
    for k in np.argsort(scores, kind="stable"):
        if scores[k] < min_score:
            continue
        label = int(classes[k])
        colour = tuple(int(255 * c) for c in colours[(label - 1) % len(colours)])
        ymin, xmin, ymax, xmax = (float(v) for v in boxes[k])
        draw.rectangle(
            [xmin, ymin, max(xmax, xmin), max(ymax, ymin)], outline=colour, width=line
        )
        text = f"{names[label - 1]} {100 * scores[k]:.0f}"
        _, _, width, height = draw.textbbox((0, 0), text, font=font)
        top = ymin - height - 2 if ymin > height + 2 else ymin
        left = max(min(xmin, canvas.size[0] - width - 2), 0)
        draw.rectangle([left, top, left + width + 2, top + height + 2], fill=colour)
        draw.text((left + 1, top), text, fill="white", font=font)
    return np.asarray(canvas)
