"""Text-to-image models that paint what another model describes: a pipeline of diffusers here, or an images endpoint."""
