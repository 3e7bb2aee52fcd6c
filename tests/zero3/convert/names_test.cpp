#include "zero3/convert/names.h"

#include <gmock/gmock.h>

#include "csrc/formats/format_error.h"
#include "csrc/formats/json.h"

namespace zeromuon::convert {
namespace {

using ::testing::HasSubstr;

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const ValueError& error) {
    return error.what();
  }
  return "";
}

TEST(Names, Utf8IsWhatPythonDecodes) {
  for (const char* good : {"", "w", "w\xc3\xa9", "\xe2\x82\xac", "\xed\x9f\xbf", "\xee\x80\x80",
                           "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(formats::is_utf8(good)) << good;
  }
  for (const char* bad : {"\xff", "w\x80", "\xc3", "\xc3z", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf",
                          "\xe2\x82", "\xed\xa0\x80", "\xed\xb3\xbf", "\xf0\x8f\xbf\xbf",
                          "\xf4\x90\x80\x80", "\xf5\x80\x80\x80"}) {
    EXPECT_FALSE(formats::is_utf8(bad)) << bad;
  }
}

TEST(Names, ANewTagIsTheNameOfAFolderThatNothingElseHas) {
  for (const char* good : {"step7", "global_step10", "latest2", ".hidden", "t\xc3\xa9"}) {
    EXPECT_NO_THROW(check_new_tag(good, "--new-tag")) << good;
  }
  for (const char* bad :
       {"", ".", "..", "a/b", "/", "latest", "latest_universal", "a\nb", "\xff"}) {
    const std::string text = refusal([&] { check_new_tag(bad, "--new-tag"); });
    EXPECT_THAT(text, HasSubstr("choose another name with --new-tag")) << bad;
  }
}

TEST(Names, TheTagOfAFolderIsItsNameHoweverItIsWritten) {
  for (const char* path :
       {"/a/step7", "/a/step7/", "/a/step7/.", "/a/step7//", "step7", "./step7", "step7/x/.."}) {
    EXPECT_EQ(tag_of_folder(path), "step7") << path;
  }
}

TEST(Names, APatternThatMatchesNothingIsAnsweredWithNearNames) {
  Checkpoint checkpoint;
  for (const char* name : {"layers.0.attention.weight", "layers.1.attention.weight", "norm.bias"}) {
    checkpoint.tensors.emplace_back().name = name;
  }
  checkpoint.aliases["head"] = "norm.bias";
  EXPECT_NO_THROW(check_patterns(checkpoint, "--include", {}));
  EXPECT_NO_THROW(check_patterns(checkpoint, "--include", {"layers.?.*", "head", "*bias"}));
  const auto refused = [&](const char* pattern) {
    return refusal([&] { check_patterns(checkpoint, "--include", {"head", pattern}); });
  };
  EXPECT_THAT(refused("layer.0.attn.*"), HasSubstr("--include: "));
  EXPECT_THAT(refused("layer.0.attn.*"), HasSubstr("near it: layers.0.attention.weight"));
  EXPECT_THAT(refused("hed"), HasSubstr("near it: head"));
  EXPECT_THAT(refused("#"), HasSubstr("matches none of 4 names; `zeromuon ckpt inspect --all`"));
}

}  // namespace
}  // namespace zeromuon::convert
