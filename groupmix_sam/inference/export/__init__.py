"""Export to ONNX, OpenVINO and TensorRT."""
