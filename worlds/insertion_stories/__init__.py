"""Picture stories with candidates: some pictures are inserted, some drawn, some not wanted."""
