"""AudioLM's acoustic codec: causal convolutions on the wave around a residual quantizer."""
