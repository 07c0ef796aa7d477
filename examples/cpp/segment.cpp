// The mask of what is in a box, by a folder that `groupmix-sam export openvino` or `groupmix-sam export onnx` wrote:
//
//     segment exported/ photo.jpg 170,16,420,312 mask.png
//
// mask.png has the image's size, 255 inside and 0 outside.

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb_image.h>
#include <stb_image_write.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <openvino/runtime/core.hpp>
#include <stdexcept>
#include <string>
#include <vector>

// Of pixels from 0 to 255, RGB; `mean` and `std` in config.json.
const float MEAN[] = {123.675f, 116.28f, 103.53f}, STD[] = {58.395f, 57.12f, 57.375f};

struct Image {
    int height, width;
    std::vector<uint8_t> pixels;  // height x width x 3, RGB
};

// Resizes an image's width, and swaps its rows and columns: done twice, it resizes both. As Pillow's bilinear filter does, with
// whose pixels the weights were trained: each pixel is the mean of those below a triangle, which is wider where the image shrinks.
Image resize_and_swap(const Image& image, int width) {
    Image out{width, image.height, std::vector<uint8_t>(size_t(3) * width * image.height)};
    const double scale = double(image.width) / width, support = std::max(scale, 1.0);
    for (int x = 0; x < width; x++) {
        const double center = (x + 0.5) * scale;
        const int first = std::max(0, int(center - support + 0.5)), end = std::min(image.width, int(center + support + 0.5));
        std::vector<double> weights;
        double total = 0;
        for (int i = first; i < end; i++) {
            weights.push_back(std::max(0.0, 1 - std::abs(i + 0.5 - center) / support));
            total += weights.back();
        }
        for (int y = 0; y < image.height; y++)
            for (int c = 0; c < 3; c++) {
                double sum = 0;
                for (int i = first; i < end; i++)
                    sum += weights[i - first] * image.pixels[3 * (size_t(y) * image.width + i) + c];
                out.pixels[3 * (size_t(x) * image.height + y) + c] = uint8_t(sum / total + 0.5);
            }
    }
    return out;
}

// One of the folder's four models, in OpenVINO's or ONNX's format.
ov::InferRequest load(ov::Core& core, const std::filesystem::path& folder, const std::string& part) {
    auto path = folder / (part + ".xml");
    if (!std::filesystem::exists(path)) path = folder / (part + ".onnx");
    // fp32 on every processor: OpenVINO would choose bf16 where it is fast, and the masks would differ.
    return core.compile_model(path.string(), "CPU", ov::hint::inference_precision(ov::element::f32)).create_infer_request();
}

// Where the i-th of `size` pixels lies among `count` logits, the first `extent` of which are the image's.
double place(int i, int size, double extent, int count) {
    return std::clamp((i + 0.5) * extent / size - 0.5, 0.0, count - 1.0);
}

int run(int argc, char** argv) {
    float left, top, right, bottom;
    if (argc != 5 || std::sscanf(argv[3], "%f,%f,%f,%f", &left, &top, &right, &bottom) != 4)
        throw std::runtime_error("usage: segment FOLDER IMAGE left,top,right,bottom MASK.png");

    // Read the image. It is taken as it is stored: stb knows nothing of EXIF's orientation.
    Image image;
    int channels;
    uint8_t* data = stbi_load(argv[2], &image.width, &image.height, &channels, 3);
    if (!data) throw std::runtime_error(std::string(argv[2]) + " cannot be read: " + stbi_failure_reason());
    image.pixels.assign(data, data + size_t(3) * image.width * image.height);
    stbi_image_free(data);

    ov::Core core;
    auto encoder = load(core, argv[1], "encoder"), tokens = load(core, argv[1], "image"), decoder = load(core, argv[1], "decoder");

    // Resize the long side to the model's, normalise, and pad with zeros at the right and at the bottom.
    const auto shape = encoder.get_compiled_model().input().get_partial_shape();  // images x 3 x rows x columns
    const int rows = int(shape[2].get_length()), columns = int(shape[3].get_length()), side = std::max(rows, columns);
    const double scale = double(side) / std::max(image.height, image.width);
    const int height = int(image.height * scale + 0.5), width = int(image.width * scale + 0.5);
    if (std::min(height, width) < 1 || height > rows || width > columns)
        throw std::runtime_error("the folder was exported for images of another shape");
    const Image small = resize_and_swap(resize_and_swap(image, width), height);
    std::vector<float> input(size_t(3) * rows * columns);
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++)
                input[(size_t(c) * rows + y) * columns + x] = (small.pixels[3 * (size_t(y) * width + x) + c] - MEAN[c]) / STD[c];

    // Encode, once for an image; then decode, once for a prompt. A box is two points, with the labels 2 and 3.
    encoder.set_input_tensor(ov::Tensor(ov::element::f32, {1, 3, size_t(rows), size_t(columns)}, input.data()));
    encoder.infer();
    tokens.set_input_tensor(encoder.get_output_tensor());
    tokens.infer();
    for (size_t i = 0; i < 4; i++) decoder.set_input_tensor(i, tokens.get_output_tensor(i));
    const double across = double(width) / image.width, down = double(height) / image.height;
    float points[] = {float(left * across), float(top * down), float(right * across), float(bottom * down)}, labels[] = {2, 3};
    decoder.set_input_tensor(4, ov::Tensor(ov::element::f32, {1, 2, 2}, points));
    decoder.set_input_tensor(5, ov::Tensor(ov::element::f32, {1, 2}, labels));
    decoder.infer();

    // The first of four masks is the one for a box. Resize its logits to the image; they are positive inside.
    const ov::Tensor answer = decoder.get_output_tensor(0);  // 1 x 4 x logit rows x logit columns
    const int high = int(answer.get_shape()[2]), wide = int(answer.get_shape()[3]);
    const float* logits = answer.data<const float>();
    std::vector<uint8_t> mask(size_t(image.height) * image.width);
    for (int y = 0; y < image.height; y++) {
        const double v = place(y, image.height, double(height) * high / rows, high);
        const int j = std::min(int(v), high - 2);
        for (int x = 0; x < image.width; x++) {
            const double u = place(x, image.width, double(width) * wide / columns, wide);
            const int i = std::min(int(u), wide - 2);
            const float* p = logits + size_t(j) * wide + i;
            const double above = p[0] + (u - i) * (p[1] - p[0]), below = p[wide] + (u - i) * (p[wide + 1] - p[wide]);
            mask[size_t(y) * image.width + x] = above + (v - j) * (below - above) > 0 ? 255 : 0;
        }
    }
    if (!stbi_write_png(argv[4], image.width, image.height, 1, mask.data(), image.width))
        throw std::runtime_error(std::string(argv[4]) + " cannot be written");
    std::printf("score %.4f\n", decoder.get_output_tensor(1).data<const float>()[0]);
    return 0;
}

int main(int argc, char** argv) {
    try {
        return run(argc, argv);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "segment: %s\n", e.what());
        return 1;
    }
}
