// Small files made byte by byte, for tests of what no writer writes.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "csrc/formats/format_error.h"
#include "tests/csrc/formats/zip_bytes.h"

namespace zeromuon::formats {

// A folder of its own for each test, removed at its end.
class FolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(::testing::TempDir()) /
              (std::string("zeromuon-") + info->test_suite_name() + "-" + info->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string file(const std::string& name, const std::string& bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
    return path(name);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      out.push_back(entry.path().filename().string());
    }
    return out;
  }

  std::filesystem::path folder_;
};

inline std::string bytes_of_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// The text of the FormatError that `action` raises; a failure when it raises none.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const FormatError& error) {
    EXPECT_FALSE(error.finding().file.empty());
    EXPECT_FALSE(error.finding().remedy.empty()) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "expected a FormatError";
  return {};
}

inline std::string short_text(const std::string& text) {
  return "\x8c" + le<uint8_t>(text.size()) + text;
}

// A pickle of one tensor of storage "0" of floats.
inline std::string tensor_pickle(int elements, int offset, const std::string& shape,
                                 const std::string& strides) {
  const auto small = [](int n) { return "J" + le<int32_t>(n); };
  return std::string("\x80\x02") + "ctorch._utils\n_rebuild_tensor_v2\n((" + short_text("storage") +
         "ctorch\nFloatStorage\n" + short_text("0") + short_text("cpu") + small(elements) + "tQ" +
         small(offset) + shape + strides + "\x89" + "ccollections\nOrderedDict\n)RtR.";
}

}  // namespace zeromuon::formats
