"""Scale-invariant signal-to-distortion ratio."""
