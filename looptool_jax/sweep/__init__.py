"""Many runs of the loop: a space of settings, its trials one by one, searches, and what the runs say together."""
