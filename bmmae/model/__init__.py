"""The one encoder, its decoders and its heads."""
