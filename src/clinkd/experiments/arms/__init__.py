"""The arms of each claim, a file a claim: rows of an ablation that take one part of the method apart."""
