// panoptic MODEL.xml PICTURE.ppm OUTPUT: writes OUTPUT.png, the map of ids in COCO's coding
// (R + 256 G + 65536 B), and OUTPUT.json, its segments. MODEL.xml is from
// `spatialflow export --format openvino`, PICTURE.ppm a binary PPM (P6) of 8 bits.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

using Bytes = std::vector<uint8_t>;

struct Picture {
    int height, width;
    Bytes pixels;  // height x width x 3
};

Picture read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    int width = 0, height = 0, most = 0;
    if (!(file >> kind >> width >> height >> most) || kind != "P6" || most != 255 || width < 1 ||
        height < 1)
        throw std::runtime_error(path + " is no binary PPM (P6) of 8 bits.");
    file.get();
    Picture picture{height, width, Bytes(size_t(3) * height * width)};
    if (!file.read(reinterpret_cast<char*>(picture.pixels.data()), picture.pixels.size()))
        throw std::runtime_error(path + " is incomplete.");
    return picture;
}

// What follows a key in the flat parts of the JSON that the file has of itself.
double number(const std::string& json, const std::string& key, double missing) {
    const size_t at = json.find('"' + key + "\": ");
    return at == std::string::npos ? missing : std::stod(json.substr(at + key.size() + 4));
}

std::string between(const std::string& text, const std::string& begin, const std::string& end) {
    const size_t from = text.find(begin) + begin.size();
    return text.substr(from, text.find(end, from) - from);
}

struct Category {
    std::string id, name;
};

std::vector<Category> categories(const std::string& list) {
    static const std::regex entry(R"rx("id": (-?\d+), "name": "((?:[^"\\]|\\.)*)")rx");
    std::vector<Category> found;
    for (std::sregex_iterator i(list.begin(), list.end(), entry), last; i != last; ++i)
        found.push_back({(*i)[1], (*i)[2]});
    return found;
}

// Pillow's bilinear resize of one axis, which smooths where it reduces, in its fixed point.
Bytes resample(const Bytes& in, int outer, int size, int inner, int new_size) {
    if (size == new_size) return in;
    constexpr int bits = 22;
    const double scale = double(size) / new_size, support = std::max(scale, 1.0);
    Bytes out(size_t(outer) * new_size * inner);
    for (int to = 0; to < new_size; ++to) {
        const double center = (to + 0.5) * scale;
        const int first = std::max(0, int(center - support + 0.5));
        const int last = std::min(size, int(center + support + 0.5));
        std::vector<double> weights;
        double total = 0;
        for (int i = first; i < last; ++i) {
            weights.push_back(std::max(0.0, 1 - std::abs((i - center + 0.5) * (1 / support))));
            total += weights.back();
        }
        std::vector<int> fixed;
        for (double w : weights) fixed.push_back(int(0.5 + w * (1 / total) * (1 << bits)));
        for (int o = 0; o < outer; ++o)
            for (int c = 0; c < inner; ++c) {
                int64_t sum = 1 << (bits - 1);
                for (int i = first; i < last; ++i)
                    sum += int64_t(fixed[i - first]) * in[(size_t(o) * size + i) * inner + c];
                out[(size_t(o) * new_size + to) * inner + c] =
                    uint8_t(std::clamp<int64_t>(sum >> bits, 0, 255));
            }
    }
    return out;
}

// The input size by the rule of the training pipeline: fixed, or by the shorter side.
std::array<int, 2> input_size(const Picture& picture, const std::string& rule) {
    const double fixed = number(rule, "height", 0), shorter = number(rule, "shorter", 0);
    if (fixed > 0) return {int(fixed), int(number(rule, "width", 0))};
    if (shorter <= 0) return {picture.height, picture.width};
    double scale = shorter / std::min(picture.height, picture.width);
    double height = picture.height < picture.width ? shorter : scale * picture.height;
    double width = picture.height < picture.width ? scale * picture.width : shorter;
    const double longer = number(rule, "longer", 0), largest = std::max(height, width);
    if (largest > longer) {
        height *= longer / largest;
        width *= longer / largest;
    }
    return {std::max(1, int(height + 0.5)), std::max(1, int(width + 0.5))};
}

void put(Bytes& out, uint32_t value) {
    for (int shift = 24; shift >= 0; shift -= 8) out.push_back(uint8_t(value >> shift));
}

void chunk(Bytes& png, const std::string& kind, const Bytes& content) {
    put(png, uint32_t(content.size()));
    Bytes body(kind.begin(), kind.end());
    body.insert(body.end(), content.begin(), content.end());
    uint32_t crc = ~0u;
    for (uint8_t byte : body) {
        crc ^= byte;
        for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? 0xEDB88320u ^ (crc >> 1) : crc >> 1;
    }
    png.insert(png.end(), body.begin(), body.end());
    put(png, ~crc);
}

// A PNG whose rows are stored, not compressed.
void write_png(const std::string& path, const int32_t* ids, int height, int width) {
    Bytes raw, header, data{0x78, 0x01}, png{0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
    for (int y = 0; y < height; ++y) {
        raw.push_back(0);
        for (int x = 0; x < width; ++x)
            for (int shift : {0, 8, 16})
                raw.push_back(uint8_t(ids[size_t(y) * width + x] >> shift));
    }
    uint32_t a = 1, b = 0;
    for (uint8_t byte : raw) b = (b + (a = (a + byte) % 65521)) % 65521;
    for (size_t at = 0; at < raw.size(); at += 65535) {
        const size_t length = std::min<size_t>(65535, raw.size() - at);
        for (int byte : {int(at + length == raw.size()), int(length & 255), int(length >> 8),
                         int(~length & 255), int(~length >> 8 & 255)})
            data.push_back(uint8_t(byte));
        data.insert(data.end(), raw.begin() + at, raw.begin() + at + length);
    }
    put(data, b << 16 | a);
    put(header, width);
    put(header, height);
    for (int byte : {8, 2, 0, 0, 0}) header.push_back(uint8_t(byte));  // 8 bits, RGB
    chunk(png, "IHDR", header);
    chunk(png, "IDAT", data);
    chunk(png, "IEND", {});
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(png.data()), png.size());
}

void write_segments(const std::string& path, ov::InferRequest& request, const std::string& json) {
    const auto ids = request.get_tensor("segment_ids"), areas = request.get_tensor("segment_areas");
    const auto scores = request.get_tensor("scores"), classes = request.get_tensor("classes");
    const auto things = categories(between(json, "\"things\": [", "], \"stuff\""));
    const auto stuff = categories(between(json, "\"stuff\": [", "], \"channels\""));
    const size_t rows = scores.get_size();
    std::ofstream file(path);
    std::string separator = "[";
    for (size_t row = 0; row < ids.get_size(); ++row) {
        if (ids.data<int32_t>()[row] == 0) continue;
        const bool thing = row < rows;
        const Category& category =
            thing ? things.at(classes.data<int64_t>()[row]) : stuff.at(row - rows);
        file << separator << "\n {\"id\": " << ids.data<int32_t>()[row]
             << ", \"isthing\": " << (thing ? "true" : "false")
             << ", \"area\": " << areas.data<int32_t>()[row]
             << ", \"category_id\": " << category.id << ", \"category\": \"" << category.name << '"';
        if (thing) file << ", \"score\": " << scores.data<float>()[row];
        file << "}";
        separator = ",";
    }
    file << (separator == "[" ? "[]" : "\n]") << "\n";
}

void run(const std::string& model_path, const std::string& picture, const std::string& output) {
    ov::Core core;
    const auto model = core.read_model(model_path);
    if (!model->has_rt_info("spatialflow"))
        throw std::runtime_error(model_path + " was not made by spatialflow export.");
    const auto json = model->get_rt_info<std::string>("spatialflow");
    const std::string rule = between(json, "\"resize\": {", "}");
    if (number(json, "format_version", 0) != 1 || rule.find("\"cv2\"") != std::string::npos)
        throw std::runtime_error(model_path + " has a format or resize this program lacks.");
    Picture given = read_ppm(picture);
    const auto [h, w] = input_size(given, rule);
    Bytes resized = resample(given.pixels, given.height, given.width, 3, w);
    resized = resample(resized, 1, given.height, 3 * w, h);
    std::vector<int64_t> size{given.height, given.width};
    std::vector<float> settings;
    std::stringstream list(between(json, "\"settings\": {", "}"));
    for (std::string entry; std::getline(list, entry, ',');)
        settings.push_back(std::stof(entry.substr(entry.find(':') + 1)));

    auto request = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32))
                       .create_infer_request();
    request.set_tensor("image", {ov::element::u8, {size_t(h), size_t(w), 3}, resized.data()});
    request.set_tensor("output_size", {ov::element::i64, {2}, size.data()});
    request.set_tensor("settings", {ov::element::f32, {settings.size()}, settings.data()});
    request.infer();
    const auto* ids = request.get_tensor("panoptic").data<int32_t>();
    write_png(output + ".png", ids, given.height, given.width);
    write_segments(output + ".json", request, json);
}

int main(int argc, char** argv) {
    if (argc != 4) {
        std::cerr << "usage: panoptic MODEL.xml PICTURE.ppm OUTPUT\n";
        return 2;
    }
    try {
        run(argv[1], argv[2], argv[3]);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << "\n";
        return 1;
    }
}
