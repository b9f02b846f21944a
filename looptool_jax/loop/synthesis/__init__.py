"""D_seed from language models (paper, section 3): trees, API documents, simulated dialogues."""
