"""What a training prints, tracks and draws."""
