"""What a run is measured by: held-out accuracy, label repair, expansion."""
