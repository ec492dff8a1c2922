"""What every use of a model says about itself."""

NOTICE = "Research software: not a medical device. Synthesised images are guesses; do not read diagnoses from them."
