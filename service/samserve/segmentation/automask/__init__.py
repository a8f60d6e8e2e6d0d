"""The use case AutoMask: every object of a picture, as the reference generator finds them."""
