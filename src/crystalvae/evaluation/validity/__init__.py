"""Are crystals valid: in structure, composition and contacts."""
