// What the tests of broken checkpoints and interrupted runs share.
#pragma once

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>

#include "csrc/formats/output_file.h"
#include "tests/csrc/formats/builders.h"
#include "tests/zero3/convert/zero3_files.h"
#include "zero3/convert/verbs.h"

namespace zeromuon::convert {

class SmallFiles : public formats::FolderTest {
 protected:
  std::string make(const std::string& name, const SmallCheckpoint& what = {}) const {
    SmallWriter(what, path(name)).write();
    return path(name);
  }
  static std::string rank_file(const std::string& folder, int rank, const char* kind) {
    return concat(folder, "/step7/zero_pp_rank_", rank, "_mp_rank_00_", kind, "_states.pt");
  }
};

// Regular files below `folder`, relative to it, with their bytes.
inline std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> out;
  if (!std::filesystem::exists(folder)) return out;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const std::string path = entry.path().string();
    out[std::filesystem::relative(path, folder).string()] = formats::bytes_of_file(path);
  }
  return out;
}

// The file again with another pickle; records keep their names and bytes, CRCs are right.
inline std::string with_pickle(const formats::TorchFile& file, const std::string& pickle) {
  std::vector<formats::ZipEntry> entries;
  for (const formats::ZipRecord& record : file.zip().records()) {
    const auto bytes = file.zip().read(record, 1 << 30);
    const bool is_pickle = record.name.ends_with("/data.pkl");
    entries.push_back({record.name, is_pickle ? pickle : std::string(bytes.begin(), bytes.end())});
  }
  return formats::make_zip(entries);
}

inline std::string pickle_of(const formats::PickleGraph& graph, formats::NodeId root) {
  const std::vector<uint8_t> bytes = formats::write_pickle(graph, root, "edited");
  return {bytes.begin(), bytes.end()};
}

// Changes the pickle of a file in place. edit(graph, root)
inline void edit(const std::string& path,
                 const std::function<void(formats::PickleGraph&, formats::NodeId)>& change) {
  std::string bytes;
  {
    const formats::TorchFile file(path);
    formats::PickleGraph graph;
    const formats::NodeId root = formats::PickleCopier(file.graph(), graph).copy(file.root());
    change(graph, root);
    bytes = with_pickle(file, pickle_of(graph, root));
  }
  std::ofstream(path, std::ios::binary) << bytes;
}

// What a child process that did `action` came to.
struct ChildOutcome {
  std::string text;        // what the action returned, or "raised: ..." of another exception
  int64_t peak_bytes = 0;  // resident
};

// A process of its own, for limits, users and mounts that cannot be taken back.
inline ChildOutcome in_child(const std::function<std::string()>& action) {
  int ends[2];
  if (::pipe(ends) != 0) return {"no pipe", 0};
  const pid_t child = ::fork();
  if (child == 0) {
    std::string text;
    try {
      text = action();
    } catch (const std::exception& error) {
      text = std::string("raised: ") + error.what();
    }
    const bool told = ::write(ends[1], text.data(), text.size()) >= 0;
    ::_exit(told ? 0 : 1);
  }
  ::close(ends[1]);
  ChildOutcome out;
  char buffer[4096];
  for (ssize_t got; (got = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
    out.text.append(buffer, static_cast<size_t>(got));
  }
  ::close(ends[0]);
  struct rusage usage {};
  int status = 0;
  ::wait4(child, &status, 0, &usage);
  out.peak_bytes = usage.ru_maxrss * 1024;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) out.text += concat(" [died: ", status, "]");
  return out;
}

}  // namespace zeromuon::convert
