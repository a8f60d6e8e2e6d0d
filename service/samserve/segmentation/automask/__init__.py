"""The use case AutoMask: every object of an image, as the reference generator finds them."""
