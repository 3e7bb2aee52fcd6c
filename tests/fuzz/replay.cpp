// Gives the files of a corpus to a fuzz target, and every file with each byte changed once, where
// there is no libFuzzer.
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes);

int main(int arguments, char** values) {
  int inputs = 0;
  for (int i = 1; i < arguments; ++i) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(values[i])) {
      if (!entry.is_regular_file()) continue;
      std::ifstream in(entry.path(), std::ios::binary);
      std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(in), {}};
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
      for (size_t at = 0; at < bytes.size(); ++at) {
        bytes[at] ^= static_cast<uint8_t>(1 + at % 255);
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
        LLVMFuzzerTestOneInput(bytes.data(), at);
        bytes[at] ^= static_cast<uint8_t>(1 + at % 255);
      }
      inputs += 1 + 2 * static_cast<int>(bytes.size());
    }
  }
  std::cout << inputs << " inputs\n";
  return inputs > 0 ? 0 : 1;
}
