"""What must come back: the tracked objects as one nested state dict, and the way back."""
