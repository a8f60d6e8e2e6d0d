"""The AutoMask use case: every object of an image, as the reference generator finds them."""
