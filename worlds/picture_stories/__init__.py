"""Picture stories: outlines of coloured shapes; sentences and pictures of them can be checked exactly."""
