"""Videos as a source of images: their frames in order, the labels of each frame, and splits."""
