"""Images of a split on their way from their files to the augmentation."""
