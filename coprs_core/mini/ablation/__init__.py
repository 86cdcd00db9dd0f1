"""The paper's tables in small: variants of the method, trained from one start with equal budgets
and measured on the same scenes."""
