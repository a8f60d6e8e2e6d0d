"""The mask decoder of all families, with less arithmetic than the original, exactly."""
