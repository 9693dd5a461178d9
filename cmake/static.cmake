# libdynadapt.a: one object of all that libdynadapt.so is made of, in the same order, that shows the C ABI and nothing else.
#
# An archive of the objects as they are would be wrong: from an archive a linker takes what is asked for first, so that a weak function
# which several instruction sets hold could come from one that this processor lacks, and could take the place of the program's own.
find_program(DYNADAPT_OBJCOPY NAMES ${CMAKE_OBJCOPY} objcopy REQUIRED)
set(whole ${CMAKE_CURRENT_BINARY_DIR}/dynadapt_whole.o)
add_custom_command(
  OUTPUT ${whole}
  COMMAND ${CMAKE_LINKER} -r --force-group-allocation -o ${whole} $<TARGET_OBJECTS:dynadapt_core> ${DYNADAPT_OBJECTS}
  COMMAND ${DYNADAPT_OBJCOPY} --wildcard "--keep-global-symbol=dynadapt_*" ${whole}
  DEPENDS $<TARGET_OBJECTS:dynadapt_core> ${DYNADAPT_OBJECTS}
  COMMAND_EXPAND_LISTS VERBATIM)
set_source_files_properties(${whole} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)

# By name, since a program in C, for which CMake knows no C++ library, may link it.
set(DYNADAPT_STATIC_NEEDS stdc++ gomp m dl pthread)
add_library(dynadapt_static STATIC ${whole})
set_target_properties(dynadapt_static PROPERTIES OUTPUT_NAME dynadapt LINKER_LANGUAGE CXX)
target_link_libraries(dynadapt_static INTERFACE ${DYNADAPT_STATIC_NEEDS})
target_include_directories(dynadapt_static INTERFACE $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/csrc/include>
                           $<INSTALL_INTERFACE:include>)
install(TARGETS dynadapt_static EXPORT dynadaptTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
