"""The detection loss, with its assignment of boxes to anchors."""
