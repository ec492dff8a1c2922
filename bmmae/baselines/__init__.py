"""Published comparators, built from well-kept libraries wherever they exist there."""
