"""The use cases: Embed, Predict and AutoMask."""
