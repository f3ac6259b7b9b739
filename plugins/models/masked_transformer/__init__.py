"""SoundStorm: masks of all frames are filled in parallel, level by level. Imports no torch."""
