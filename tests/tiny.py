"""The sizes of the encoders that tests train."""

ENCODER = {
    "model.width": 8,
    "model.num_layers": 1,
    "model.ffn_width": 8,
    "model.attention.num_heads": 2,
}
