"""The paper: train, probe (GCP), judge (JGLV), expand (EDDE), compose, and the runner that closes the loop."""
