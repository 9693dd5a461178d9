"""What learns, as buffers: one learner makes the gradients' places, the updates and the saved state of one way to adapt."""
