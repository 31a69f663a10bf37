"""An export beside its weights: files for other programs, code, licences, and questions asked before and after."""
