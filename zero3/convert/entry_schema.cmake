# entry_schema.cpp: the schema of the `zeromuon` entry as a table of C++, of the file that Python reads.
set(schema "${PROJECT_SOURCE_DIR}/python/zeromuon/base/entry_schema.json")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${schema}")
file(READ "${schema}" schema)

# A list, or the names of an object, as "a", "b".
function(schema_names out part)
  string(JSON count LENGTH "${schema}" ${part})
  set(names "")
  if(count GREATER 0)
    math(EXPR last "${count} - 1")
    foreach(i RANGE ${last})
      if(part STREQUAL "needs")
        string(JSON name GET "${schema}" ${part} ${i})
      else()
        string(JSON name MEMBER "${schema}" ${part} ${i})
      endif()
      list(APPEND names "\"${name}\"")
    endforeach()
  endif()
  list(JOIN names ", " names)
  set(${out} "${names}" PARENT_SCOPE)
endfunction()

string(JSON key GET "${schema}" key)
string(JSON format GET "${schema}" format)
schema_names(needs needs)
schema_names(fields fields)
file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/entry_schema.cpp" CONTENT
"#include \"zero3/convert/entry.h\"

namespace zeromuon::convert {

const EntrySchema kEntrySchema = {\"${key}\", ${format}, {${needs}}, {${fields}}};

}  // namespace zeromuon::convert
")
