"""What can be typed for a run, checked before any library of training is imported."""
