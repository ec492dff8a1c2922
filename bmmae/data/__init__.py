"""Reading, checking, preparing and serving studies."""
