"""What docs/how/edge_chips.md says of the encoder that chips' compilers get."""

import onnx

# RKNNToolKit2_OP_Support-v2.1.0.md of Rockchip's rknn-toolkit2: the ONNX operators that are not "Not Supported".
RKNN = """
Add And ArgMax ArgMin AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos
DepthToSpace DequantizeLinear Div Dropout Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements Gemm
GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GRU HardSigmoid HardSwish Identity If InstanceNormalization
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LRN LSTM MatMul Max MaxPool MaxRoiPool
MaxUnpool MeanVarianceNormalization Min Mish Mod Mul Pad Pow PRelu QuantizeLinear ReduceMax ReduceMean ReduceMin
ReduceSum Relu Reshape Resize ReverseSequence RoiAlign ScatterND Shape Sigmoid Sin Size Slice Softmax Softplus
SpaceToDepth Split Sqrt Squeeze Sub Tanh Tile Transpose Unsqueeze Where
"""


def test_the_fast_encoder_has_operators_of_rockchips_list(fast_graphs):
    model = onnx.load(fast_graphs / "encoder.onnx")
    assert {node.op_type for node in model.graph.node} <= {*RKNN.split()}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]  # of at most 19
    # Its remarks: bilinear or nearest, and a batch of one.
    for node in model.graph.node:
        if node.op_type == "Resize":
            attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            assert attributes["mode"] == b"linear"


def test_its_shapes_are_fixed(fast_graphs):
    graph = onnx.shape_inference.infer_shapes(onnx.load(fast_graphs / "encoder.onnx")).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    assert shapes["images"] == [1, 3, 512, 512]
    assert shapes["features"] == [1, 256, 64, 64]
    assert all(side > 0 for shape in shapes.values() for side in shape)
    outputs = {name for node in graph.node for name in node.output}
    assert outputs <= shapes.keys()
    assert max(len(shape) for shape in shapes.values()) == 4
