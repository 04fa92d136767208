"""What a design would cost on a phone, from its Spec alone."""

from vlmexport.costs.estimate import Costs, Estimate, estimate
from vlmexport.costs.phones import Phone, choose_phones

__all__ = ["Costs", "Estimate", "Phone", "choose_phones", "estimate"]
