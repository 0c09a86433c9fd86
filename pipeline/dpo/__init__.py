"""The DPO update: objectives, batches, gradients, the optimizer, what is saved and checked."""
