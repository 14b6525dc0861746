"""Studies whose tables and figures lie beside the configurations."""
