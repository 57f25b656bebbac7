// Find the instances in an image with an exported model: detect MODEL.onnx IN.ppm OUT.ppm [SCORE]
//
// Prints score, class, left, top, right and bottom of each instance of at least SCORE (0.3), and
// writes the image with coloured masks. IN.ppm is a binary PPM of the size that the model was
// trained for. docs/deploy.md says how to compile.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    int64_t height = 0, width = 0;
    std::vector<uint8_t> pixels;  // height x width x RGB
};

Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    Image image;
    int64_t most = 0, limit = 8192;
    file >> kind >> image.width >> image.height >> most;
    file.get();
    const bool fits = std::min(image.width, image.height) > 0 && std::max(image.width, image.height) <= limit;
    if (!file || kind != "P6" || most != 255 || !fits) throw std::runtime_error(path + ": not a binary PPM");
    image.pixels.resize(image.height * image.width * 3);
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), image.pixels.size()))
        throw std::runtime_error(path + ": truncated");
    return image;
}

template <typename T>
Ort::Value tensor(std::vector<T>& values, const std::vector<int64_t>& shape) {
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return Ort::Value::CreateTensor<T>(memory, values.data(), values.size(), shape.data(), shape.size());
}

std::vector<Ort::Value> run(Ort::Session& session, const Image& image) {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto metadata = session.GetModelMetadata();
    const auto setting = [&](const char* key) -> std::string {
        const auto value = metadata.LookupCustomMetadataMapAllocated(key, allocator);
        return value ? value.get() : throw std::runtime_error(std::string("the model's metadata lack ") + key);
    };
    const int64_t square = std::stoll(setting("square_size")), step = std::stoll(setting("size_divisor"));
    const auto padded = [&](int64_t side) { return square ? square : (side + step - 1) / step * step; };
    const int64_t rows = padded(image.height), columns = padded(image.width);
    const bool bgr = setting("input_format") == "\"BGR\"";
    std::vector<uint8_t> planes(3 * rows * columns);
    for (int64_t y = 0; y < image.height; ++y)
        for (int64_t x = 0; x < image.width; ++x)
            for (int64_t c = 0; c < 3; ++c)
                planes[(c * rows + y) * columns + x] = image.pixels[(y * image.width + x) * 3 + (bgr ? 2 - c : c)];
    std::vector<int64_t> size{image.height, image.width};
    std::vector<float> y(image.height), x(image.width);  // masks are sampled at the image's pixels
    std::iota(y.begin(), y.end(), 0.f);
    std::iota(x.begin(), x.end(), 0.f);
    const Ort::Value inputs[] = {tensor(planes, {1, 3, rows, columns}), tensor(size, {1, 2}),
                                 tensor(y, {1, image.height}), tensor(x, {1, image.width})};
    const char* in[] = {"images", "image_sizes", "rows", "columns"};
    const char* out[] = {"scores", "classes", "boxes", "masks", "num_detections"};
    return session.Run(Ort::RunOptions{}, in, inputs, 4, out, 5);
}

int main(int argc, char** argv) try {
    if (argc < 4) throw std::runtime_error("usage: detect MODEL.onnx IN.ppm OUT.ppm [SCORE]");
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING);
    Ort::Session session(env, argv[1], Ort::SessionOptions{});
    Image image = read_ppm(argv[2]);
    const float least = argc > 4 ? std::stof(argv[4]) : 0.3f;
    const auto found = run(session, image);
    const float *scores = found[0].GetTensorData<float>(), *boxes = found[2].GetTensorData<float>();
    const int64_t* classes = found[1].GetTensorData<int64_t>();
    const bool* masks = found[3].GetTensorData<bool>();
    const int64_t count = *found[4].GetTensorData<int64_t>(), area = image.height * image.width;
    for (int64_t n = 0; n < count && scores[n] >= least; ++n) {  // best first
        std::cout << scores[n] << ' ' << classes[n];
        for (int64_t side = 0; side < 4; ++side) std::cout << ' ' << boxes[4 * n + side];
        std::cout << '\n';
        for (int64_t i = 0; i < 3 * area; ++i)
            if (masks[n * area + i / 3]) image.pixels[i] = (image.pixels[i] + (n + 1) * (i % 3 + 1) * 97 % 256) / 2;
    }
    std::ofstream overlay(argv[3], std::ios::binary);
    overlay << "P6\n" << image.width << ' ' << image.height << "\n255\n";
    overlay.write(reinterpret_cast<const char*>(image.pixels.data()), image.pixels.size());
    if (!overlay.flush()) throw std::runtime_error(std::string(argv[3]) + ": cannot be written");
} catch (const std::exception& error) {  // of ONNX Runtime too
    std::cerr << "detect: " << error.what() << '\n';
    return 1;
}
