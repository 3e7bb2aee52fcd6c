#include "csrc/formats/pickle.h"

#include <gmock/gmock.h>

#include "tests/csrc/formats/builders.h"
#include "tests/csrc/formats/pickles_of_python.h"

namespace zeromuon::formats {
namespace {

using ::testing::HasSubstr;

PickleGraph read(const std::string& bytes) {
  return read_pickle(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), "test.pkl", 0);
}

std::string describe(const std::string& bytes) {
  const PickleGraph graph = read(bytes);
  return graph.describe(graph.root(), 2000);
}

std::string refusal(const std::string& bytes) {
  return error_of([&] { read(bytes); });
}

std::string rewritten(const std::string& bytes) {
  const PickleGraph graph = read(bytes);
  const auto out = write_pickle(graph, graph.root(), "out.pkl");
  return {out.begin(), out.end()};
}

std::string from_hex(const std::string& hex) {
  std::string out;
  for (size_t i = 0; i < hex.size(); i += 2) {
    out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return out;
}

std::string repeat(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

const std::string kHead = "\x80\x02";

TEST(Pickle, TheSameValueOfEveryProtocolIsReadAndWrittenBack) {
  for (const char* hex : kPicklesInHex) {
    const std::string bytes = from_hex(hex);
    const PickleGraph graph = read(bytes);
    const NodeId root = graph.root();
    EXPECT_TRUE(graph.is_none(graph.get(root, "none")));
    EXPECT_TRUE(graph.as_bool(graph.get(root, "yes"), false));
    EXPECT_FALSE(graph.as_bool(graph.get(root, "no"), true));
    const auto& ints = graph.items(graph.get(root, "ints"));
    const std::vector<int64_t> expected = {0,  255,       256,       65535,    65536,
                                           -1, 1ll << 31, INT64_MAX, INT64_MIN};
    ASSERT_EQ(ints.size(), expected.size() + 1);
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(graph.as_int(ints[i], 7), expected[i]);
    EXPECT_EQ(graph.kind(ints.back()), NodeKind::kBigInt);
    EXPECT_EQ(graph.as_real(graph.get(root, "real"), 0), 1.5);
    EXPECT_EQ(graph.as_text(graph.get(root, "text")), "h\xc3\xa9");
    EXPECT_EQ(graph.describe(graph.get(root, "tuples")),
              "((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))");
    EXPECT_EQ(graph.as_int(graph.get(graph.get(root, "ordered"), "a"), 0), 1);
    const auto& twice = graph.items(graph.get(root, "twice"));
    EXPECT_EQ(twice[0], twice[1]) << "what is shared stays shared";
    EXPECT_EQ(describe(bytes), describe(rewritten(bytes)));
    EXPECT_EQ(rewritten(bytes), rewritten(rewritten(bytes)));
  }
}

TEST(Pickle, MemoryIsBoundedByTheSizeOfThePickle) {
  constexpr int kMany = 200'000;
  for (const char* value :
       {")", "]", "}", "\x8f", "]]a", "}K\x01Ns", "K\x01\x85", "N)R", "N)\x81"}) {
    const std::string bytes = kHead + "(" + repeat(value, kMany) + "l.";
    try {
      const PickleGraph graph = read(bytes);
      EXPECT_LE(graph.bytes(), (64 << 10) + 20 * bytes.size());
      EXPECT_EQ(graph.items(graph.root()).size(), kMany);
    } catch (const FormatError& error) {
      EXPECT_THAT(error.what(), HasSubstr("bytes of memory, got more")) << value;
    }
  }
  EXPECT_THAT(refusal(kHead + "(" + repeat("]]a", kMany) + "l."), HasSubstr("bytes of memory"));
}

TEST(Pickle, WhatIsEmptyCanBeFilled) {
  EXPECT_EQ(describe(kHead + "(]K\x01"
                             "a]}K\x02K\x03s}l."),
            "[[1], [], {2: 3}, {}]");
  EXPECT_EQ(describe(kHead + "(]}ccollections\nOrderedDict\n)RK\x01K\x02st."),
            "([], {}, collections.OrderedDict(){1: 2})");
}

TEST(Pickle, NothingIsCalledAndUnknownObjectsAreKept) {
  const std::string evil = kHead + "cos\nsystem\n" + short_text("rm -rf /") + "\x85R.";
  EXPECT_EQ(describe(evil), "os.system('rm -rf /',)");
  const std::string object = kHead + "cargparse\nNamespace\n)\x81}" + short_text("lr") + "K\x03sb.";
  EXPECT_EQ(describe(object), "argparse.Namespace(){'lr': 3}");
  EXPECT_EQ(describe(rewritten(object)), describe(object));
}

TEST(Pickle, ADescriptionThatIsCutShortCutsNoCharacter) {
  PickleGraph graph;
  const NodeId text = graph.string("h\xc3\xa9\xe2\x82\xac!");
  EXPECT_EQ(graph.describe(text, 3), "'h...");
  EXPECT_EQ(graph.describe(text, 4), "'h\xc3\xa9...");
  EXPECT_EQ(graph.describe(text, 6), "'h\xc3\xa9...");
  EXPECT_EQ(graph.describe(text, 7), "'h\xc3\xa9\xe2\x82\xac...");
}

TEST(Pickle, EveryTruncationIsAnError) {
  for (const char* hex : kPicklesInHex) {
    const std::string whole = from_hex(hex);
    for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
      EXPECT_THAT(refusal(whole.substr(0, bytes)), HasSubstr("test.pkl")) << bytes;
    }
    EXPECT_THAT(refusal(whole + "N"), HasSubstr("more bytes"));
  }
}

TEST(Pickle, EveryFlippedBitIsAnErrorOrAnotherValue) {
  for (const char* hex : kPicklesInHex) {
    const std::string whole = from_hex(hex);
    for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
      std::string damaged = whole;
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
      try {
        rewritten(damaged);
      } catch (const FormatError& error) {
        EXPECT_FALSE(error.finding().remedy.empty());
      }
    }
  }
}

TEST(Pickle, ABillionLaughsStaysAsSmallAsItsPickle) {
  // Thirty lists, each with ten times the one before: 10^30 values for Python.
  std::string bytes = kHead + "]q" + le<uint8_t>(0) + "0";
  for (uint8_t i = 1; i < 30; ++i) {
    bytes += "](" + repeat("h" + le<uint8_t>(i - 1), 10) + "eq" + le<uint8_t>(i) + "0";
  }
  bytes += "h" + le<uint8_t>(29) + ".";
  const PickleGraph graph = read(bytes);
  EXPECT_LT(graph.size(), bytes.size());
  EXPECT_LT(graph.describe(graph.root(), 500).size(), 600u);
  const auto out = write_pickle(graph, graph.root(), "out.pkl");
  EXPECT_LE(out.size(), bytes.size() + 100);
}

TEST(Pickle, NestingBeyondTheLimitIsRefused) {
  EXPECT_THAT(refusal(kHead + repeat("]", 1000) + repeat("a", 999) + "."), HasSubstr("nested"));
  EXPECT_NE(describe(kHead + repeat("]", 300) + repeat("a", 299) + "."), "");
  // Deep only along shared values.
  std::string shared = kHead + ")q" + le<uint8_t>(0);
  EXPECT_THAT(refusal(shared + repeat("\x85", 1000) + "."), HasSubstr("nested"));
}

TEST(Pickle, AValueThatContainsItselfIsRefused) {
  EXPECT_THAT(refusal(kHead + "]q" + le<uint8_t>(0) + "h" + le<uint8_t>(0) + "a."),
              HasSubstr("contain"));
}

TEST(Pickle, HugeClaimedLengthsAreRefusedBeforeMemoryIsTaken) {
  const std::string huge = le<uint64_t>(1ull << 62), large = le<uint32_t>(0xfffffff0u);
  for (const std::string& bytes :
       std::vector<std::string>{kHead + "X" + large, kHead + "\x8d" + huge, kHead + "\x8e" + huge,
                                kHead + "\x96" + huge, kHead + "B" + large, kHead + "\x8b" + large,
                                "\x80\x04\x95" + huge + "N.", kHead + "Nr" + large + "."}) {
    EXPECT_THAT(refusal(bytes), HasSubstr("test.pkl"));
  }
}

TEST(Pickle, StackMarksAndMemoAreChecked) {
  const std::string zero = le<uint8_t>(0);
  for (const std::string& bytes : std::vector<std::string>{kHead + ".",
                                                           kHead + "NN.",
                                                           kHead + "(N.",
                                                           kHead + "t.",
                                                           kHead + "h" + zero + ".",
                                                           kHead + "\x85.",
                                                           kHead + "N(\x85.",
                                                           kHead + "(NR.",
                                                           kHead + "NNR.",
                                                           kHead + "(a.",
                                                           kHead + "NNa.",
                                                           kHead + "}(Nu.",
                                                           kHead + "N(NNu.",
                                                           kHead + "NNb.",
                                                           kHead + "KK\x93.",
                                                           kHead + "cos\n",
                                                           "\x80\x01N.",
                                                           "\x80\x06N.",
                                                           kHead + "P0\n.",
                                                           kHead + "i",
                                                           kHead + "\x97.",
                                                           kHead + "ca\x01\nb\n.",
                                                           kHead + "coo\nl\n)\x81}b}b."}) {
    EXPECT_THAT(refusal(bytes), HasSubstr("test.pkl"));
  }
}

TEST(Pickle, APickleBeyondTheLimitIsRefused) {
  const std::string bytes = kHead + repeat("N0", 100) + "N.";
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  EXPECT_THAT(error_of([&] {
                read_pickle(data, bytes.size(), "test.pkl", 0, {50, 400});
              }),
              HasSubstr("at most 50"));
}

TEST(Pickle, CopiesIntoAnotherGraphKeepWhatIsShared) {
  const PickleGraph from = read(from_hex(kPicklesInHex[2]));
  PickleGraph to;
  PickleCopier copier(from, to);
  const NodeId copied = copier.copy(from.root());
  EXPECT_EQ(from.describe(from.root(), 2000), to.describe(copied, 2000));
  const auto& twice = to.items(to.get(copied, "twice"));
  EXPECT_EQ(twice[0], twice[1]);
}

TEST(Pickle, ADictIsChangedByKeyAndTheLastOfEqualKeysCounts) {
  PickleGraph graph = read(kHead + "}(" + short_text("a") + "K\x01" + short_text("a") + "K\x02u.");
  EXPECT_EQ(graph.as_int(graph.get(graph.root(), "a"), 0), 2);
  graph.set(graph.root(), "b", graph.integer(5));
  EXPECT_TRUE(graph.erase(graph.root(), "a"));
  EXPECT_FALSE(graph.erase(graph.root(), "a"));
  EXPECT_EQ(graph.describe(graph.root()), "{'b': 5}");
}

}  // namespace
}  // namespace zeromuon::formats
