# The files by which other builds find the library.
include(CMakePackageConfigHelpers)

# Writes dynadapt{Config,ConfigVersion,Targets}.cmake and dynadapt.pc into <where>/cmake/dynadapt and <where>/pkgconfig, for
# a library in <libdir>. Both are relative to the prefix, and nothing written names the prefix: it may be moved as a whole.
# Further arguments go to install().
function(dynadapt_package targets where libdir)
  set(out ${CMAKE_CURRENT_BINARY_DIR}/${targets})
  set(cmakedir ${where}/cmake/dynadapt)
  configure_package_config_file(cmake/dynadaptConfig.cmake.in ${out}/dynadaptConfig.cmake INSTALL_DESTINATION ${cmakedir})
  # Before 1.0 a minor version may change the ABI.
  write_basic_package_version_file(${out}/dynadaptConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${out}/dynadaptConfig.cmake ${out}/dynadaptConfigVersion.cmake DESTINATION ${cmakedir} ${ARGN})
  install(EXPORT ${targets} FILE dynadaptTargets.cmake NAMESPACE dynadapt:: DESTINATION ${cmakedir} ${ARGN})

  set(pc_libdir ${libdir})
  file(RELATIVE_PATH pc_prefix /prefix/${where}/pkgconfig /prefix)
  set(pc_private "")
  if(TARGET dynadapt_static AND targets STREQUAL dynadaptTargets)
    list(TRANSFORM DYNADAPT_STATIC_NEEDS PREPEND -l OUTPUT_VARIABLE needed)
    list(JOIN needed " " needed)
    set(pc_private "Libs.private: ${needed}\n")
  endif()
  configure_file(cmake/dynadapt.pc.in ${out}/dynadapt.pc @ONLY)
  install(FILES ${out}/dynadapt.pc DESTINATION ${where}/pkgconfig ${ARGN})
endfunction()
