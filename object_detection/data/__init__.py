"""Images with boxes: COCO JSON, TensorFlow Datasets, and generated scenes."""
