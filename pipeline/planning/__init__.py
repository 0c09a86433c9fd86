"""A round on paper: what a recipe takes in time, memory, store and money, by arithmetic alone; see docs/capacity.md.

Begin with ``plan.plan_round``. ``devices`` has every figure of the machines, with its source.
"""
